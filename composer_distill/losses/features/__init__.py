"""Losses of features: one layer of the student against one of the teacher."""
