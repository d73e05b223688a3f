"""Decoding image files into pixels and metadata, in processes that may crash without harm.

Import `decode` for the decoding itself, `decoder_process` for decoders in separate processes, `exif` for camera metadata.
"""
