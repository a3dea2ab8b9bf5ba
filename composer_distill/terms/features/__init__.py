"""Terms of features: layers of the student against layers of its teachers."""
