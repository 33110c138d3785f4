"""Pools: a Protocol, a module for each kind, and the records of those that were made."""
