"""A model that was really pretrained, with patients trained into it: what each method forgets, keeps and destroys."""
