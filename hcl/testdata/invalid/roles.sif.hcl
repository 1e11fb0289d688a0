# Externals whose roles or rules no exit can carry.
domain "shop" {
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
  external "payments" {
    names = ["api.example.com"]
  }
  external "postgres" {
    consul {
      service = "postgres"
      within  = ["10.20.0.0/16"]
    }
  }
  external "host" {
    node {}
  }
  contract "callbacks" {
    originators = ["payments", "postgres", "host"]
    responders  = ["web"]
    rule {
      protocol = "tcp"
      ports    = [443]
    }
  }
  contract "pay" {
    originators = ["web"]
    responders  = ["payments", "postgres"]
    rule {
      protocol = "tcp"
      ports    = [443]
    }
    rule {
      protocol = "sctp"
      ports    = [3868]
    }
    rule {
      protocol = "icmp"
      types    = ["echo-request", "timestamp-request"]
    }
    rule {
      protocol = "icmpv6"
      types    = ["echo-request"]
    }
  }
  contract "agents" {
    originators = ["web"]
    responders  = ["host"]
    rule {
      protocol = "udp"
      ports    = [8125, 53]
    }
    rule {
      protocol = "tcp"
      ports    = ["1-9000"]
    }
    rule {
      protocol = "icmp"
      types    = ["echo-request"]
    }
  }
}
