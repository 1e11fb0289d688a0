domain "shop" {
  service "web" {
    selector "nomad" {
      job = "web"
    }
  }
  service "idle" {
  }
  external "mail" {
    prefixes = ["192.0.2.25", "169.254.169.254", "0.0.0.0/0"]
  }
  contract "old" {
    expires     = "2026-11-23T08:00:00Z"
    originators = ["web"]
    responders  = ["mail"]
    rule {
      protocol = "tcp"
      ports    = [25]
    }
  }
  contract "waiting" {
    originators = ["web"]
    responders  = ["partners/api", "partners/apy", "unknown/api", "partners/ledger"]
    rule {
      protocol = "tcp"
      ports    = [443]
    }
  }
}

domain "partners" {
  service "api" {
    selector "nomad" {
      job = "api"
    }
  }
  service "ledger" {
    selector "nomad" {
      job = "ledger"
    }
  }
  accept "shop/waiting" {
    services = ["ledger"]
  }
  accept "shop/wating" {
  }
}
