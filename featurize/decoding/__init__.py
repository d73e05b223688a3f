"""From the bytes of an image file to pixels and metadata, in processes that may crash without harm.

Import `decode` for the decoding itself, `decoder_process` for decoders in processes of their own, `exif` for camera metadata.
"""
