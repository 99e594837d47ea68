"""The ``gcp-jax`` command line: parsing, help, and a file for each group of commands.

``main`` has the table of commands; a group's file is imported when one of its commands is used.
What a command does belongs to the packages below.
"""
