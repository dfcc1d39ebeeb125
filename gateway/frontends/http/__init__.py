"""The HTTP endpoint: routing, host policy, authentication, and one exchange."""
