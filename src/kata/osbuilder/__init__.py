"""Guest kernel and guest root image, made from Debian packages."""
