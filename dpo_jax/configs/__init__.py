"""The shipped configurations, `get_config(arg) -> ConfigDict` each.

`--config=NAME[:ARG]` runs one of them from any folder; in a checkout they also lie
under `configs/`, which is a link to this folder.
"""
