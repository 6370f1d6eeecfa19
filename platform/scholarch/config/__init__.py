"""The recipe: a strict schema, one YAML file per recipe, overrides, schedules.

`scholarch.config.schedule` needs nothing but Python; the rest needs pydantic and PyYAML.
"""
