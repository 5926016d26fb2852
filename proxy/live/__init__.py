"""What reaches a running call, or a page, from elsewhere: cancels, withdrawn rights, pictures of calls in flight."""
