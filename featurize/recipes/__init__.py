"""Recipes: one TOML file for a whole run, read and checked section by section.

Import `recipe` for whole recipes, the `*_section` modules for single sections, `toml_settings` for reading and checking TOML.
"""
