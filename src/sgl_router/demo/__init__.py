"""`sgl-router demo`: small engines of our own, the router, and requests through it."""
