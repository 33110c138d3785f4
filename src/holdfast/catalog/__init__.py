"""Durable records and their migrations."""
