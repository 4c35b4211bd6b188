"""Which worker has been sent which text: a bounded, approximate picture of the engines' caches.

An engine keeps what it computed for a prompt, and computes only the rest of the next prompt that
begins alike. What it still holds it does not say, so that the router remembers what it sent: for
each pool of workers a radix tree of texts, whose nodes know the workers that were sent the text up
to their end. Where the memory is used up, the texts are forgotten that were not sent for longest,
as an engine would forget them.

A path of the tree is walked in steps of whole edges, each compared at C speed; where a text leaves
an edge in its middle, the place is found by halving.

What it takes (CPython 3.11): a stored character 1, 2 or 4 bytes, as in any `str` (English, Chinese,
anything with an emoji in it); a node 300 to 400 bytes besides; workers that hold a node together 35
to 150 bytes each. All of that counts towards the limit, so that `max_characters` is the bytes that
English texts take at most, and a client that makes many small nodes gains nothing by it.
"""

from collections.abc import Mapping

from sgl_router.core.registry import Pool
from sgl_router.core.worker import Worker

MAX_TEXT_CHARACTERS = 32 * 1024
"""Of a text, no more than this is remembered: some 8,000 tokens. Two texts that begin alike for so
long are most often one conversation or one document, and each worker's share of the memory is not
for one client with prompts of 8 MB to take."""

NODE_CHARACTERS = 384
"""A node counts for so many characters, besides those of its text."""

HOLDER_CHARACTERS = 128
"""Each holder of a node counts for so many characters."""

_MAX_DEPTH = 64
"""Nodes on a path. A conversation has one for each time that it moved to another worker or was
forked; a client may make thousands on purpose, of one character each, so that each decision takes
long. What is below is not found, and so forgotten."""


class _Holder:
    """A worker with what it was sent since its engine last dropped its cache.

    Attributes:
        worker: after it has been forgotten it may have another holder.
        nodes: how many it holds.
    """

    __slots__ = ("nodes", "worker")

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.nodes = 0


_Holders = frozenset[_Holder] | set[_Holder]
_NOBODY: frozenset[_Holder] = frozenset()


class _Node:
    """A stretch of text that some workers were sent, and where it goes on.

    Attributes:
        label: the text between its parent's end and its own.
        parent: None at the root, which stands for a pool.
        children: by the first character of their labels; None where there are none.
        holders: who was sent the text up to its end; one alone shares its frozenset with all nodes
            that only it holds.
        older, newer: its neighbours in the order of use.
    """

    __slots__ = ("children", "holders", "label", "newer", "older", "parent")

    def __init__(self, label: str, parent: "_Node | None", holders: _Holders) -> None:
        self.label = label
        self.parent = parent
        self.holders = holders
        self.children: dict[str, _Node] | None = None
        self.older = self.newer = self

    def move(self, end: "_Node") -> None:
        """Be the newest of the order that begins and ends at `end`."""
        older, newer = self.older, self.newer
        older.newer, newer.older = newer, older
        newest = end.older
        self.older, self.newer = newest, end
        newest.newer = end.older = self

    @property
    def size(self) -> int:
        """What it counts for, in characters."""
        return len(self.label) + NODE_CHARACTERS + len(self.holders) * HOLDER_CHARACTERS


class _Root(_Node):
    """The empty text of one pool."""

    __slots__ = ("pool",)

    def __init__(self, pool: Pool) -> None:
        super().__init__("", None, _NOBODY)
        self.pool = pool

    @property
    def size(self) -> int:
        return len(self.pool[1] or "") + NODE_CHARACTERS


class PrefixMatch:
    """How much of a text which worker holds; true until the next text is inserted.

    Attributes:
        characters: how much the workers hold that hold most of it.
    """

    __slots__ = ("_alone", "_depths", "_forgotten", "_most", "_path", "characters")

    def __init__(
        self,
        path: list[tuple[int, _Node]],
        alone: Mapping[Worker, frozenset[_Holder]],
        forgotten: set[_Holder],
    ) -> None:
        """`path`: the nodes matched, from the root, with the characters matched at each."""
        self._path = path
        self._alone = alone
        self._forgotten = forgotten
        self._depths: dict[Worker, int] | None = None
        self.characters = 0
        self._most: _Holders = _NOBODY
        for characters, node in reversed(path):
            holders = node.holders
            if forgotten and not holders.isdisjoint(forgotten):
                holders = holders - forgotten
            if holders:
                self.characters, self._most = characters, holders
                break

    @property
    def holders(self) -> set[Worker]:
        """The workers that hold most of it; none where `characters` is 0."""
        return {holder.worker for holder in self._most}

    @property
    def holder_count(self) -> int:
        """How many they are, which is quicker than to name them."""
        return len(self._most)

    def holds_most(self, worker: Worker) -> bool:
        """Whether this worker is one of `holders`; quicker, too."""
        return not self._most.isdisjoint(self._alone.get(worker, _NOBODY))

    def of(self, worker: Worker) -> int:
        """How many of its characters this worker holds."""
        if self._depths is None:
            self._depths = depths = {}
            for characters, node in self._path:
                for holder in node.holders - self._forgotten:
                    depths[holder.worker] = characters
        return self._depths.get(worker, 0)


class PrefixIndex:
    """The texts of all pools, bounded together.

    Args:
        max_characters: what all texts, nodes and holders may count for. Every insertion keeps to
            it, by evicting as much as it added; while it works, one text may be above.
    """

    def __init__(self, max_characters: int = 2**26) -> None:
        self._max_characters = max_characters
        self._roots: dict[Pool, _Root] = {}
        # A ring of all nodes in the order of use, begun and ended by this one. A text is used from
        # its deepest node up to the root, so that no node is older than one below it, and the
        # oldest is always a leaf. (An OrderedDict would be copied as a whole now and then.)
        self._order = _Node("", None, _NOBODY)
        self._count = 0
        self._size = 0
        self._alone: dict[Worker, frozenset[_Holder]] = {}  # each worker's holder
        self._forgotten: set[_Holder] = set()  # those of no worker that still hold nodes

    @property
    def size(self) -> int:
        """What everything remembered counts for, in characters."""
        return self._size

    def __len__(self) -> int:
        """Nodes, of all pools."""
        return self._count

    def match(self, pool: Pool, text: str) -> PrefixMatch:
        """Who holds how much of the text."""
        path: list[tuple[int, _Node]] = []
        node: _Node | None = self._roots.get(pool)
        at, end = 0, len(text)
        while node is not None and node.children is not None and at < end:
            node = node.children.get(text[at])
            if node is None or len(path) == _MAX_DEPTH:
                break
            label = node.label
            if not text.startswith(label, at):
                path.append((at + _common(label, text, at), node))
                break
            at += len(label)
            path.append((at, node))
        return PrefixMatch(path, self._alone, self._forgotten)

    def insert(self, pool: Pool, text: str, worker: Worker) -> None:
        """The worker is sent this text; of a long one, the first MAX_TEXT_CHARACTERS count."""
        if not text:
            return
        if len(text) > MAX_TEXT_CHARACTERS:
            text = text[:MAX_TEXT_CHARACTERS]
        root = self._roots.get(pool)
        if root is None:
            root = self._roots[pool] = _Root(pool)
            self._size += root.size
        alone = self._alone.get(worker)
        if alone is None:
            alone = self._alone[worker] = frozenset((_Holder(worker),))
        path = self._walk(root, text, alone)
        for node in reversed(path):
            node.move(self._order)
        while self._size > self._max_characters:
            self._evict()

    def forget(self, worker: Worker) -> None:
        """The worker is gone, or its engine has dropped its cache.

        Its nodes are not looked for: they are passed over from here on, and tidied up when they are
        next used or evicted. What it is sent after that it holds anew.
        """
        self._forgotten |= self._alone.pop(worker, _NOBODY)

    # ---- growing

    def _walk(self, root: _Root, text: str, alone: frozenset[_Holder]) -> list[_Node]:
        """Make the one in `alone` hold the text; returns the nodes on the way."""
        path: list[_Node] = []
        node: _Node = root
        at, end = 0, len(text)
        while at < end and len(path) < _MAX_DEPTH:
            child = None if node.children is None else node.children.get(text[at])
            if child is None:
                if node.children is None and node.holders == alone:
                    node.label += text[at:]
                    self._size += end - at
                else:
                    path.append(self._add(node, text[at:], alone))
                break
            if not text.startswith(child.label, at):
                common = _common(child.label, text, at)
                if at + common == end and alone <= child.holders:
                    path.append(child)  # it was sent all this and more
                    break
                child = self._split(child, common)
            self._hold(child, alone)
            path.append(child)
            at += len(child.label)
            node = child
        return path

    def _add(self, parent: _Node, label: str, holders: _Holders) -> _Node:
        node = _Node(label, parent, holders)
        if parent.children is None:
            parent.children = {}
        parent.children[label[0]] = node
        self._count += 1
        self._size += node.size
        for holder in holders:
            holder.nodes += 1
        return node

    def _split(self, node: _Node, at: int) -> _Node:
        """Put a node above this one that has the first `at` characters of its label."""
        parent, label, holders = node.parent, node.label, node.holders
        assert parent is not None, "a root has no label to split"
        shared = holders if isinstance(holders, frozenset) else set(holders)
        upper = self._add(parent, label[:at], shared)
        upper.children = {label[at]: node}
        node.parent = upper
        node.label = label[at:]
        self._size -= at  # the same characters as before, in two nodes
        return upper

    def _hold(self, node: _Node, alone: frozenset[_Holder]) -> None:
        """The one in `alone` was sent the text up to this node's end."""
        holders = node.holders
        if self._forgotten and not holders.isdisjoint(self._forgotten):
            gone = holders & self._forgotten
            node.holders = holders = holders - gone
            self._size -= len(gone) * HOLDER_CHARACTERS
            for one in gone:
                self._drop(one)
        if alone <= holders:
            return
        (holder,) = alone
        holder.nodes += 1
        self._size += HOLDER_CHARACTERS
        if not holders:
            node.holders = alone
        elif isinstance(holders, frozenset):
            node.holders = {*holders, holder}
        else:
            holders.add(holder)

    # ---- shrinking

    def _evict(self) -> None:
        """Forget the node that was not used for longest."""
        node = self._order.newer
        assert node.children is None, "what is above is used whenever what is below is"
        self._order.newer = node.newer
        node.newer.older = self._order
        node.newer = self._order  # a match may keep this node, but none that follow it
        self._count -= 1
        self._size -= node.size
        for holder in node.holders:
            self._drop(holder)
        parent = node.parent
        assert parent is not None and parent.children is not None, "roots are not in the order"
        del parent.children[node.label[0]]
        if not parent.children:
            parent.children = None
            if isinstance(parent, _Root):
                self._size -= parent.size
                del self._roots[parent.pool]

    def _drop(self, holder: _Holder) -> None:
        """It holds one node less."""
        holder.nodes -= 1
        if not holder.nodes:
            if holder in self._forgotten:
                self._forgotten.remove(holder)
            else:
                del self._alone[holder.worker]


def _common(label: str, text: str, at: int) -> int:
    """How many characters `label` and `text` from `at` on share; not all of `label`, but one."""
    low, high = 1, min(len(label), len(text) - at)
    while low < high:  # they share `low`, and no more than `high`
        middle = (low + high + 1) // 2
        if text.startswith(label[low:middle], at + low):
            low = middle
        else:
            high = middle - 1
    return low
