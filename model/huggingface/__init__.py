"""A checkpoint as a folder that Hugging Face's tools read too."""
