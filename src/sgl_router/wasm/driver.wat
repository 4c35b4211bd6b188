;; The driver makes the calls of one decision into a guest, to whose exports it is linked: see
;; driver.py. It has a memory of its own, the exchange: the host puts the input there, at 0, and
;; finds the result there, at 0 too. Each pointer of the guest's is checked before it is used: sizes
;; are compared with what there is after it, since a sum of both could wrap around.

(module $sgl_router_driver
  (import "guest" "memory" (memory $guest 0))
  (import "guest" "alloc" (func $alloc (param i32) (result i32)))
  (import "guest" "dealloc" (func $dealloc (param i32 i32)))
  (import "guest" "select_worker" (func $select_worker (param i32 i32) (result i32)))
  (import "guest" "on_request_complete" (func $on_request_complete (param i32 i32)))

  ;; One page holds the longest result that is allowed.
  (memory $exchange (export "exchange") 1)

  ;; The pointer that the guest returned last, for the host to report.
  (global $pointer (export "pointer") (mut i32) (i32.const 0))

  ;; The length of the result in the exchange while the guest frees what it has allocated: a
  ;; decision that stands although that may fail. Otherwise -1.
  (global $decided (export "decided") (mut i32) (i32.const -1))

  ;; An input of $size bytes: 0 where it was taken, -1 where the guest has no room for it.
  (func (export "report") (param $size i32) (result i32)
    (local $input i32)
    (local.set $input (call $put (local.get $size)))
    (if (i32.eqz (local.get $input)) (then (return (i32.const -1))))
    (call $on_request_complete (local.get $input) (local.get $size))
    (call $dealloc (local.get $input) (local.get $size))
    (i32.const 0))

  ;; An input of $size bytes: the length of the result, and the pages of the guest's memory above
  ;; bit 17; -1 where the guest has no room for the input, -2 where the result is outside of its
  ;; memory, -3 where the result has no end.
  (func (export "decide") (param $size i32) (result i32)
    (local $input i32) (local $result i32) (local $length i32) (local $readable i32)
    (local.set $input (call $put (local.get $size)))
    (if (i32.eqz (local.get $input)) (then (return (i32.const -1))))
    (local.set $result (call $select_worker (local.get $input) (local.get $size)))
    (global.set $pointer (local.get $result))
    (if (i32.eqz (call $after (local.get $result))) (then (return (i32.const -2))))
    (local.set $readable
      (call $smaller (call $after (local.get $result)) (i32.const 65537))) ;; with its NUL
    (local.set $length (call $length (local.get $result) (local.get $readable)))
    (if (i32.eq (local.get $length) (local.get $readable)) (then (return (i32.const -3))))
    (memory.copy $exchange $guest (i32.const 0) (local.get $result) (local.get $length))
    (global.set $decided (local.get $length))
    (call $dealloc (local.get $result) (i32.add (local.get $length) (i32.const 1)))
    (call $dealloc (local.get $input) (local.get $size))
    (global.set $decided (i32.const -1))
    (i32.or (local.get $length) (i32.shl (memory.size $guest) (i32.const 17))))

  ;; Copies the input to where the guest wants it; 0 where it has no room.
  (func $put (param $size i32) (result i32)
    (local $at i32)
    (local.set $at (call $alloc (local.get $size)))
    (global.set $pointer (local.get $at))
    (if (i32.lt_u (call $after (local.get $at)) (local.get $size)) (then (return (i32.const 0))))
    (memory.copy $guest $exchange (local.get $at) (i32.const 0) (local.get $size))
    (local.get $at))

  ;; How many bytes there are from $at to the end of the guest's memory; 0 after a null pointer.
  (func $after (param $at i32) (result i32)
    (local $end i32)
    (local.set $end (i32.mul (memory.size $guest) (i32.const 65536)))
    (if (i32.or (i32.eqz (local.get $at)) (i32.gt_u (local.get $at) (local.get $end)))
      (then (return (i32.const 0))))
    (i32.sub (local.get $end) (local.get $at)))

  (func $smaller (param $a i32) (param $b i32) (result i32)
    (select (local.get $a) (local.get $b) (i32.lt_u (local.get $a) (local.get $b))))

  ;; How many bytes of the $most at $at stand before the first NUL; $most where there is none.
  (func $length (param $at i32) (param $most i32) (result i32)
    (local $n i32) (local $word i64)
    ;; Eight at a time, up to the word with a zero byte in it: there, and only there, a byte of
    ;; (word - 0x01…) & ~word & 0x80… is not zero (Hacker's Delight, section 6-1).
    (block $near
      (loop $next
        (br_if $near (i32.lt_u (i32.sub (local.get $most) (local.get $n)) (i32.const 8)))
        (local.set $word (i64.load $guest align=1 (i32.add (local.get $at) (local.get $n))))
        (br_if $near (i64.ne (i64.const 0) (i64.and (i64.const 0x8080808080808080) (i64.and
          (i64.sub (local.get $word) (i64.const 0x0101010101010101))
          (i64.xor (local.get $word) (i64.const -1))))))
        (local.set $n (i32.add (local.get $n) (i32.const 8)))
        (br $next)))
    (block $found
      (loop $next
        (br_if $found (i32.eq (local.get $n) (local.get $most)))
        (br_if $found
          (i32.eqz (i32.load8_u $guest (i32.add (local.get $at) (local.get $n)))))
        (local.set $n (i32.add (local.get $n) (i32.const 1)))
        (br $next)))
    (local.get $n))
)
