"""Labels for images as they arrive, in a folder or in Kafka, each image once.

Import `stream`.
"""
