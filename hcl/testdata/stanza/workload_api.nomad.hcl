variable "driver" {
  default = "docker"
}

variable "env" {
  type    = map(string)
  default = {}
}

job "shop" {
  group "web" {
    connectivity {
      service      = "shop/web"
      workload_api = true
    }

    task "exec" {
      driver = "exec"
      config {
        command = "/bin/web"
      }
    }

    task "docker" {
      driver = "docker"

      env {
        A = "b"
      }
    }

    task "one-line" {
      driver = "java"
      env { A = "b" }
    }

    task "raw" {
      driver = "raw_exec"
      env    = { A = "b" }
    }

    task "computed" {
      driver = var.driver
      env    = var.env
    }

    task "own" {
      driver = "docker"
      env = {
        SPIFFE_ENDPOINT_SOCKET = "unix:///spire/agent.sock"
      }
      volume_mount {
        volume      = "sif-workload"
        destination = "/spire"
      }
    }
  }

  group "mounted" {
    connectivity {
      workload_api = true
    }

    volume "sif-workload" {
      type      = "host"
      source    = "sif-workload"
      read_only = true
    }

    task "t" {
      driver = "docker"
    }
  }

  group "none" {
    connectivity {
      workload_api = false
    }

    task "t" {
      driver = "docker"
    }
  }
}
