"""Firn's tables in Spark SQL, as statements for other engines, and as documents for search servers.

Import `tables` to find tables, `query` to register and query them, `ddl` for statements, `documents` for search servers,
`server` for BI tools.
"""
