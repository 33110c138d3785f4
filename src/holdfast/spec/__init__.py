"""The words of Holdfast: frozen models, ids, states, units, errors. Imports nothing of ours."""
