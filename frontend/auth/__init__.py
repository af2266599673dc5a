"""Who is calling: Signature Version 4 and access keys."""
