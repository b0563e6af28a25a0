"""Model families: `interface.Backbone` is what the rest sees, `registry.BACKBONES` names them.
A family is one file of pure functions (`vit_mae.py`), its layers and its renaming tables."""
