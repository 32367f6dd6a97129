"""Workers: the protocol of those that pull, their routes, and what is known of managed ones and their hosts."""
