domian "shop" {
}

domain "shop" {
  servcie "web" {
  }
  service "web" {
    selektor "nomad" {
    }
    selector "nomda" {
      job = "web"
    }
    selector "nomad" {
      jop       = "web"
      namespace = ""
    }
    selector "k8s" {
    }
  }
  service "idle" {
  }
  contract "c" {
    originators = ["web"]
    responder   = ["web"]
    expires     = "2027-01-01"
    guardrail {
    }
    rule {
      protocol = "tcp"
      port     = 80
    }
  }
}
