domain "shop" {
  external "users" {
    prefixes = ["10.0.0.1", "10.0.0.1/8", "::ffff:10.0.0.0/104", "internet", "10.0.0.0/33", "2001:db8::1"]
  }
  external "nobody" {
    prefixes = []
  }
  external "missing" {
  }
}
