"""Labels for new images: as a table, a function of SQL, a stage of Spark ML.

Import `predict`, `udf`, `transformer`, `views`.
"""
