"""Routing decisions: workers, requests, policies and what combines them. No I/O, no clock."""
