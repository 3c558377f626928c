"""What an engine is asked to do, and what it answers: records and protocols without any engine in them."""
