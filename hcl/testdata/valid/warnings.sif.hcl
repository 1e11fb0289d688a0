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

domain "ways" {
  service "web" {
  }
  contract "frontend" {
    originators = ["web"]
    responders  = ["web"]
    rule {
      protocol = "tcp"
      ports    = [443]
    }
    path {
      require = ["encryptd"]
      prefer  = ["fast"]
      avoid   = ["spare"]
    }
  }
}

link "leased" {
  between = ["aws1", "gcp1"]
  labels  = ["encrypted"]
}
link "spare" {
  between = ["aws1", "gcp1"]
  labels  = ["spare"]
  enabled = false
}
