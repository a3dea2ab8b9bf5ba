"""Teachers' answers in files: found by what the teacher read, never by place."""
