;; The driver of a table plugin, to whose exports it is linked: see table_driver.py. The host writes
;; into the exchange, from 96 on; the driver carries that into the guest's memory. Each pointer of
;; the guest's is checked when alloc returns it. A memory never shrinks, so that it stays good.
;;
;; The exchange:
;;     0  a pointer and a size for each buffer in the guest: eight tables, the text, the request
;;    96  how many workers there are, how many records follow, the room that the table and the
;;        text want, 4 bytes each
;;   112  the request record, 64 bytes, without its pointers
;;   176  the records that have changed, each 64 bytes after its index in 4; then the hashes of
;;        the text's prefixes, 8 bytes each, and the text
;;        (or an input of `put` or `report`)

(module $sgl_router_driver
  (import "guest" "memory" (memory $guest 0))
  (import "guest" "alloc" (func $alloc (param i32) (result i32)))
  (import "guest" "dealloc" (func $dealloc (param i32 i32)))
  (import "guest" "sgl_table_v1_select" (func $select (param i32 i32 i32) (result i32)))
  (import "guest" "on_request_complete" (func $on_request_complete (param i32 i32)))

  (memory $exchange (export "exchange") 1)

  ;; What alloc was asked for last, and what it returned, for the host to report.
  (global $asked (export "asked") (mut i32) (i32.const 0))
  (global $pointer (export "pointer") (mut i32) (i32.const 0))

  ;; Whether that was refused. A guest may return any number, so that no result could say it.
  (global $refused (export "refused") (mut i32) (i32.const 0))

  ;; What the guest has chosen last, where that does not fit into 20 bits.
  (global $other (export "other") (mut i32) (i32.const 0))

  ;; Takes over what has changed in the table of a slot, and returns what the guest has chosen, with
  ;; the pages of its memory above bit 20; -1 where that does not fit, or something was refused.
  (func (export "decide") (param $slot i32) (result i32)
    (local $table i32) (local $request i32) (local $entry i32) (local $left i32) (local $at i32)
    (local $chosen i32)
    (local.set $table
      (call $buffer (local.get $slot) (i32.load $exchange (i32.const 104))))
    (if (global.get $refused) (then (return (i32.const -1))))
    (local.set $request (call $buffer (i32.const 9) (i32.const 64)))
    (if (global.get $refused) (then (return (i32.const -1))))
    (local.set $entry (i32.const 176))
    (local.set $left (i32.load $exchange (i32.const 100)))
    (block $done
      (loop $next
        (br_if $done (i32.eqz (local.get $left)))
        (local.set $at (i32.add (local.get $table)
          (i32.shl (i32.load $exchange align=1 (local.get $entry)) (i32.const 6))))
        (call $record (local.get $at) (i32.add (local.get $entry) (i32.const 4)))
        (local.set $entry (i32.add (local.get $entry) (i32.const 68)))
        (local.set $left (i32.sub (local.get $left) (i32.const 1)))
        (br $next)))
    (if (i32.load $exchange (i32.const 108)) (then (call $text (local.get $entry))))
    (if (global.get $refused) (then (return (i32.const -1))))
    (call $record (local.get $request) (i32.const 112))
    (local.set $chosen (call $select
      (local.get $table) (i32.load $exchange (i32.const 96)) (local.get $request)))
    (call $look)
    (if (i32.lt_u (local.get $chosen) (i32.const 0x100000))
      (then
        (return
          (i32.or (local.get $chosen) (i32.shl (memory.size $guest) (i32.const 20))))))
    (global.set $other (local.get $chosen))
    (i32.const -1))

  ;; A call is where wasmtime looks whether the time is up: a guest may fill its memory, which takes
  ;; milliseconds, and return.
  (func $look)

  ;; An input of $size bytes: where the guest has it; 0 where it was refused.
  (func $put (export "put") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (call $room (local.get $size)))
    (if (local.get $at)
      (then (memory.copy $guest $exchange (local.get $at) (i32.const 176) (local.get $size))))
    (local.get $at))

  ;; Tells the guest how a request has ended, in an input of $size bytes.
  (func (export "report") (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (call $put (local.get $size)))
    (if (local.get $at)
      (then
        (call $on_request_complete (local.get $at) (local.get $size))
        (call $dealloc (local.get $at) (local.get $size))))
    (local.get $at))

  ;; Sets 64 bytes of the guest's.
  (func $record (param $to i32) (param $from i32)
    (v128.store $guest align=1 (local.get $to) (v128.load $exchange align=1 (local.get $from)))
    (v128.store $guest offset=16 align=1 (local.get $to)
      (v128.load $exchange offset=16 align=1 (local.get $from)))
    (v128.store $guest offset=32 align=1 (local.get $to)
      (v128.load $exchange offset=32 align=1 (local.get $from)))
    (v128.store $guest offset=48 align=1 (local.get $to)
      (v128.load $exchange offset=48 align=1 (local.get $from))))

  ;; Takes over the hashes and the text, and enters into the request record where they are.
  (func $text (param $from i32)
    (local $at i32) (local $hashes i32)
    (local.set $at (call $buffer (i32.const 8) (i32.load $exchange (i32.const 108))))
    (if (i32.eqz (local.get $at)) (then (return)))
    (local.set $hashes (i32.shl (i32.load $exchange (i32.const 168)) (i32.const 3)))
    (memory.copy $guest $exchange (local.get $at) (local.get $from)
      (i32.add (local.get $hashes) (i32.load $exchange (i32.const 148))))
    (i32.store $exchange (i32.const 144) (i32.add (local.get $at) (local.get $hashes)))
    (if (local.get $hashes) (then (i32.store $exchange (i32.const 164) (local.get $at)))))

  ;; A buffer in the guest's memory, of $size bytes or more; 0 where it was refused. What a smaller
  ;; one held is lost.
  (func $buffer (param $number i32) (param $size i32) (result i32)
    (local $entry i32) (local $at i32) (local $before i32)
    (local.set $entry (i32.shl (local.get $number) (i32.const 3)))
    (local.set $at (i32.load $exchange (local.get $entry)))
    (local.set $before (i32.load $exchange offset=4 (local.get $entry)))
    (if (i32.ge_u (local.get $before) (local.get $size)) (then (return (local.get $at))))
    (if (local.get $before) (then (call $dealloc (local.get $at) (local.get $before))))
    (local.set $at (call $room (local.get $size)))
    (if (i32.eqz (local.get $at)) (then (return (i32.const 0))))
    (i32.store $exchange (local.get $entry) (local.get $at))
    (i32.store $exchange offset=4 (local.get $entry) (local.get $size))
    (local.get $at))

  ;; $size bytes from the guest; 0 where they are not all in its memory.
  (func $room (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (call $alloc (local.get $size)))
    (global.set $asked (local.get $size))
    (global.set $pointer (local.get $at))
    (if (i32.ge_u (call $after (local.get $at)) (local.get $size)) (then (return (local.get $at))))
    (global.set $refused (i32.const 1))
    (i32.const 0))

  ;; How many bytes there are from $at to the end of the guest's memory; 0 after a null pointer.
  ;; Compared so, since a sum of pointer and size could wrap around.
  (func $after (param $at i32) (result i32)
    (local $end i32)
    (local.set $end (i32.mul (memory.size $guest) (i32.const 65536)))
    (if (i32.or (i32.eqz (local.get $at)) (i32.gt_u (local.get $at) (local.get $end)))
      (then (return (i32.const 0))))
    (i32.sub (local.get $end) (local.get $at)))
)
