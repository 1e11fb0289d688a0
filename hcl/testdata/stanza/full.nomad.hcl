variable "image" {
  type = string
}

locals {
  count = 2
}

job "getaway-web" {
  # keeps odd   layout
  group "proxy" {
    count = local.count

    connectivity {
      service   = "getaway-app/http-proxy"
      originate = ["frontend", "other/api"]
      respond   = ["public"]
    }

    task "nginx" {
      driver = "docker"
      config {
        image = "${var.image}:latest"
      }
    }
  }

  group "plain" {
    task "t" { driver = "mock_driver" }
  }
}
