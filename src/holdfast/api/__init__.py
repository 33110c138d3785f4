"""The REST API: routes, schema, client, events, authentication, and the table from errors to HTTP."""
