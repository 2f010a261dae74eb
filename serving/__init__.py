"""Serves bundles: batch jobs over files, and the services built on them. Never imports torch."""
