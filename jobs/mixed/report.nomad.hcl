# Copyright (c) The SIF Authors
# SPDX-License-Identifier: MPL-2.0

# A report that asks the planner every minute. Its runs have the identity of the job.
job "mixed-report" {
  datacenters = ["gcp1"]
  type        = "batch"

  periodic {
    crons            = ["* * * * *"]
    prohibit_overlap = true
  }

  group "report" {
    connectivity {
      service   = "mixed-app/report"
      originate = ["plans"]
    }

    restart {
      attempts = 2
      interval = "1m"
      delay    = "5s"
      mode     = "fail"
    }

    ephemeral_disk {
      size = 150
    }

    task "report" {
      driver = "exec"
      user   = "nobody"

      config {
        command = "/bin/sh"
        # It stays for a while, as a longer report would.
        args = ["-ec", "wget -T 10 -q -O - 'http://planner.mixed-app.sif:8080/getaway?place=lisbon'; sleep 20"]
      }

      resources {
        cpu    = 50
        memory = 64
      }

      logs {
        max_files     = 1
        max_file_size = 5
      }
    }
  }
}
