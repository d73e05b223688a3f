"""Labels for new images, written as a table, as a SQL function, or as a Spark ML stage.

Import `predict`, `udf`, `transformer`, `views`.
"""
