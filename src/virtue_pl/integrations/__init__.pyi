from .mteb import MTEBModel as MTEBModel
