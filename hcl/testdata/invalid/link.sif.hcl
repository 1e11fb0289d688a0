link "Bad" {
  between = ["a", "b"]
}
link "missing" {
}
link "ends" {
  between = ["aws1", "aws1"]
}
link "ends-of-processors" {
  between = ["aws1/p1", "aws1/p2"]
}
link "one" {
  between = ["aws1"]
}
link "three" {
  between = ["aws1", "gcp1", "azure"]
}
link "names" {
  between = ["aws1/", "*/p1"]
}
link "kinds" {
  between = "aws1"
  labels  = [1]
  cost    = "cheap"
  mtu     = null
  enabled = "yes"
}
link "numbers" {
  between   = ["aws1", "gcp1/p1"]
  labels    = ["low-cost", "low-cost", ""]
  cost      = -1
  endpoints = "Private!"
  mtu       = 1280
}
link "fractions" {
  between = ["aws1", "*"]
  cost    = 1.5
  mtu     = 65456
}
link "more" {
  between = ["aws1", "*"]
  cost    = 65536
  costs   = 10
  region  = "eu"
  path {
  }
}
link "more" {
  between = ["aws1", "gcp1"]
}
domain "shop" {
  service "web" {
  }
  contract "torn" {
    originators = ["web"]
    responders  = ["web"]
    rule {
      protocol = "tcp"
      ports    = [80]
    }
    path {
      require = ["encrypted"]
      avoid   = ["metered", "encrypted"]
      prefers = ["x"]
    }
  }
}
