"""Tests of what plugins are tested with."""
