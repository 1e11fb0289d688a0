job "shop" {
  group "guest" {
    connectivity {
      vm           = true
      workload_api = true
    }
  }

  group "emulated" {
    connectivity {
      workload_api = true
    }
    task "qemu" {
      driver = "qemu"
    }
    task "short" { driver = "docker" }
    dynamic "task" {
      for_each = ["x"]
    }
  }
}
