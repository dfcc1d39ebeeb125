"""Tokens for remote backends: discovery, login, refresh and storage."""
