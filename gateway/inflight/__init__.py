"""Calls without an outcome yet, and their deadlines."""
