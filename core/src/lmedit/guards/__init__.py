"""Around every hook: what hooks print, raise, return and leave behind."""
