"""Images, volumes and image chains."""
