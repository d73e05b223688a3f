"""Systems beside Firn, each with a client library that is an extra: what Firn asks of them, in Firn's own words.

A file is for one system, and nothing elsewhere imports a client library. `client_library` imports it when it is first needed, and
says which extra has it where it is missing.
"""
