"""The HTTP service: what runs bundles under load, and the app in front of it."""
