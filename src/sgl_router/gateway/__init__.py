"""The proxy itself: sockets, connections and what happens between them."""
