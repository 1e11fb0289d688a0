# An owner who reaches beyond the binding, and the binding.
domain "shop" {
  labels = { env = "prod" }

  service "web" {
    labels = { pci = "no" }
    selector "nomad" {
      job = "shop-web"
    }
    selector "nomad" {
      namespace = "prod"
      job       = "shop-web"
    }
  }
  service "grab" {
    selector "node" {
      zone = "aws1"
    }
  }
  service "news" {
    selector "consul" {
      service = "news-gw"
    }
  }
  external "users" {
    prefixes = ["10.99.0.0/24", "10.0.0.0/8"]
  }
}

binding "shop" {
  labels = { env = "dev" }
  nomad {
    jobs = ["shop-*"]
  }
  outside {
    prefixes = ["10.99.0.0/16"]
  }
}

guardrail "no-dev-to-pci" {
  deny {
    from = { env = "dev" }
    to   = { pci = "yes" }
  }
}
