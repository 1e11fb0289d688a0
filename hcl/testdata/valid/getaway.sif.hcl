# The getaway application.
domain "getaway-app" {
  service "http-proxy" {
    selector "nomad" {
      job   = "getaway-web"
      group = "proxy"
    }
  }

  service "getaway-svc" {
    selector "nomad" {
      namespace = "prod"
      job       = "getaway"
    }
  }

  service "news-gw" {
    selector "consul" {
      service = "news-gw"
    }
  }

  external "users" {
    prefixes = ["192.0.2.0/24", "2001:db8::/32"]
  }

  contract "public" {
    originators = ["users"]
    responders  = ["http-proxy"]
    rule {
      protocol = "tcp"
      ports    = [8080]
    }
  }

  contract "frontend" {
    originators = ["http-proxy"]
    responders  = ["getaway-app/getaway-svc"]
    rule {
      protocol = "tcp"
      ports    = [8080, "8443"]
    }
  }

  contract "news-api" {
    enabled     = false
    originators = ["getaway-svc"]
    responders  = ["news-gw"]
    rule {
      protocol = "tcp"
      ports    = ["9000-9010"]
    }
    rule {
      protocol = "udp"
      ports    = [53]
    }
    path { # labels of links
      require = ["encrypted"]
      prefer  = ["low-cost"]
    }
  }
}
