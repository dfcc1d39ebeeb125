"""The modern era over HTTP: the stateless endpoint, subscriptions, suspended calls."""
